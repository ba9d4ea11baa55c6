# No default: what is not there leaves rules undefined, and that is no allow.
package waxseal

allow if {
	input.caller.attributes.clearance == "secret"
	data.missing.for_nobody != input.operation
}

allow if {
	input.caller.service == "billing"
	not input.context.hold
}

allow := input.caller.attributes.flag == "on" if input.domain == "orders"

deny_reason contains input.context.hold

deny_reason contains reason if {
	some key in input.kek_ids
	reason := data.keys[key].reason
}

deny_reason contains data.tables[input.context.table].owner if {
	data.tables[input.context.table].owner != input.caller.service
}

deny_reason contains "nobody" if not input.caller.service
