# Texts: parts, cases, formats, of ASCII and of all the rest.
package waxseal

default allow := false

allow if {
	lower(trim_space(input.caller.service)) == lower(input.context.owner)
	count(deny_reason) == 0
}

allow if {
	endswith(input.caller.service, "ing")
	count(deny_reason) == 0
}

deny_reason contains split(value, "-") if {
	some value in input.context
	contains(value, "-")
}

deny_reason contains upper(substring(input.caller.service, 2, 3)) if input.operation == "rewrap"

deny_reason contains replace(value, "e", "E") if {
	some value in input.caller.attributes
	is_string(value)
	indexof(value, "e") > 5
}

deny_reason contains sprintf("%s/%v/%d/%q", [input.operation, input.caller.roles, count(input.context), input.domain]) if {
	count(input.caller.roles) > 1
}

deny_reason contains trim(input.context.tenant, "ax") if startswith(input.context.tenant, "a")

deny_reason contains [strings.reverse(input.context.region), format_int(count(input.context.region), 2)] if input.domain

deny_reason contains base64.encode(input.caller.attributes.team)

deny_reason contains json.marshal(input.caller.attributes.teams) if count(input.caller.attributes.teams) > 1

deny_reason contains strings.any_prefix_match(input.caller.service, ["b", "se"]) if input.operation == "erase"
