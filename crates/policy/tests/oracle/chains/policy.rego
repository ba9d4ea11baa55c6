# `else`: the first that applies decides, also in functions.
package waxseal

default allow := false

allow := false if {
	input.context.hold
} else if {
	input.caller.attributes.clearance == "secret"
} else if {
	input.operation == "encrypt"
	tier >= 2
} else := false if {
	input.domain == "ledger"
} else := tier == 3

tier := 3 if {
	"admin" in input.caller.roles
} else := 2 if {
	"analyst" in input.caller.roles
} else := 1 if {
	input.caller
} else := 0

weight(text) := 10 if {
	startswith(text, "a")
} else := 5 if {
	count(text) > 6
} else := 1 if {
	text != "logs"
}

deny_reason contains {"tier": tier, "weights": weights} if {
	weights := {name: weight(value) | some name, value in input.context}
	sum([each | some each in weights]) > 12
}
