# Break glass: in an emergency a caller outside of the usual roles may decrypt, if two other people
# have approved it for this case, and for a short time. The approvals are data, which the incident
# tool writes; the caller names the case.
package waxseal

default allow := false

allow if count(deny_reason) == 0

deny_reason contains "no caller is named" if not input.caller

deny_reason contains "the caller has no usual role, and break-glass does not apply" if {
	not has_usual_role
	not is_approved
}

deny_reason contains reason if {
	not has_usual_role
	some reason in break_glass_reason
}

has_usual_role if {
	some role in input.caller.roles
	role in data.break_glass.usual_roles
}

now := time.parse_rfc3339_ns(input.time)

case := data.break_glass.cases[input.caller.attributes.case]

is_approved if {
	case
	count(break_glass_reason) == 0
}

break_glass_reason contains "break-glass only decrypts" if input.operation != "decrypt"

break_glass_reason contains "the case is about another caller" if {
	case.user != input.caller.attributes.user
}

break_glass_reason contains "the case is about another tenant" if {
	case.tenant != input.context.tenant
}

break_glass_reason contains "the caller's name is not known" if not input.caller.attributes.user

break_glass_reason contains "the context names no tenant" if not input.context.tenant

break_glass_reason contains "two people have to approve, and neither is the caller" if {
	count(approver) < 2
}

# Each person once, whoever wrote the approval twice; those of the last hours only.
approver contains name if {
	some approval in case.approvals
	name := approval.by
	name in data.break_glass.approvers
	name != input.caller.attributes.user
	at := time.parse_rfc3339_ns(approval.at)
	at <= now
	now - at < data.break_glass.valid_minutes * 60000000000
}
