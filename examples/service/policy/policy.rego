# Who may do what. Both domains name this policy: it sees which one it is asked about.
package waxseal

default allow := false

allow if count(deny_reason) == 0

deny_reason contains "no caller is named" if not input.caller

deny_reason contains "the caller belongs to another tenant" if not is_own_tenant

deny_reason contains "only billing reads cards" if {
	input.domain == "payments"
	input.operation == "decrypt"
	not is_billing
}

deny_reason contains "only an administrator erases and rewraps" if {
	input.operation in ["erase", "rewrap"]
	not is_administrator
}

is_own_tenant if input.caller.attributes.tenant == input.context.tenant

is_billing if "billing" in input.caller.roles

is_administrator if "administrator" in input.caller.roles
