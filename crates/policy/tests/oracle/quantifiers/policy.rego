# `every`, `some`, negation, and what holds of nothing.
package waxseal

default allow := false

allow if {
	every key in input.kek_ids {
		startswith(key, "local:")
	}
	every name, value in input.context {
		value != ""
		name != "hold"
	}
	not any_unknown
	some role in input.caller.roles
	role != "guest"
}

any_unknown if {
	some role in input.caller.roles
	not data.roles[role]
}

deny_reason contains pair if {
	some index, role in input.caller.roles
	some other in array.slice(input.caller.roles, index + 1, 100)
	{role, other} in separated
	pair := concat(" and ", [role, other])
}

separated := {{pair[0], pair[1]} | some pair in data.separated}

deny_reason contains "all of them" if {
	count(input.caller.groups) > 0
	every group in input.caller.groups {
		some role in input.caller.roles
		group != role
	}
	input.operation == "erase"
}

deny_reason contains ["position", index] if {
	some index, "admin" in input.caller.roles
	index > 0
}
