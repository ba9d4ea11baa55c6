# Partial rules: sets and objects that several rules make together.
package waxseal

default allow := false

allow if {
	may[input.operation]
	count(deny_reason) == 0
}

may.encrypt if "clerk" in input.caller.roles

may.encrypt if input.caller.service in open_services

may.decrypt := true if "analyst" in input.caller.roles

may[operation] if {
	some operation in data.always[input.caller.service]
}

open_services contains service if some service in data.open

open_services contains "gateway" if input.domain

level[role] := value if {
	some role in input.caller.roles
	value := data.levels[role]
}

owners[table] contains owner if {
	some owner, tables in data.owners
	some table in tables
}

deny_reason contains [role, value] if {
	some role, value in level
	value > data.limits[input.context.table]
}

deny_reason contains owners[input.context.table] if {
	not is_owner
}

is_owner if input.caller.service in owners[input.context.table]

deny_reason contains operation if {
	some operation, allowed in may
	not allowed
}
