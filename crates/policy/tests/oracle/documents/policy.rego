# Data that nest, with keys that the question names, and numbers of every kind.
package waxseal

default allow := false

allow if {
	some rule in data.rules[input.domain]
	applies(rule)
	count(deny_reason) == 0
}

applies(rule) if {
	rule.operations[_] == input.operation
	every name, value in rule.context {
		input.context[name] == value
	}
}

limit := data.limits[input.context.tenant][input.operation]

limit := data.limits["*"][input.operation] if not has_limits

has_limits if data.limits[input.context.tenant]

deny_reason contains {"limit": limit} if limit < 10

deny_reason contains [path, value] if {
	walk(data.limits[input.context.tenant], [path, value])
	is_number(value)
	value > 1000000
}

deny_reason contains name if {
	some index
	data.rules[input.domain][index].denied[input.caller.service]
	name := data.rules[input.domain][index].name
}
