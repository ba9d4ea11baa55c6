# Reasons of every type, more of them than are kept, and longer than is kept.
package waxseal

default allow := false

allow if count(deny_reason) == 0

deny_reason contains input.operation if input.operation != "decrypt"

deny_reason contains input.kek_ids if count(input.kek_ids) > 1

deny_reason contains input.context if count(input.context) > 2

deny_reason contains {role | some role in input.caller.roles} if count(input.caller.roles) > 1

deny_reason contains null if input.context.hold

deny_reason contains count(input.context) == 1 if input.domain == "ledger"

deny_reason contains count(input.caller.groups) if count(input.caller.groups) > 1

deny_reason contains number if {
	"admin" in input.caller.roles
	some number in numbers.range(1, 40)
}

deny_reason contains long if {
	input.domain == "ledger"
	long := concat(input.caller.attributes.team, split("aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", ""))
}
