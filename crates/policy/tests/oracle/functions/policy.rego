# Functions with several bodies, and rules that may have two values: that is an error.
package waxseal

default allow := false

allow if {
	rank(input.caller.roles) >= 2
	count(deny_reason) == 0
}

rank([]) := 0

rank(roles) := max([data.rank[role] | some role in roles]) if count(roles) > 0

verdict := "orders" if input.domain == "orders"

verdict := "cards" if input.context.table == "cards"

verdict := "orders" if input.context.table == "orders"

deny_reason contains verdict if input.operation == "erase"

sign(text) := "high" if text > "m"

sign(text) := "low" if text < "s"

deny_reason contains sign(input.context.tenant) if input.operation == "rewrap"

is_odd(number) if number % 2 == 1

deny_reason contains "odd" if is_odd(count(input.caller.groups))

deny_reason contains apply(input.context) if count(input.context) > 3

apply(context) := names if {
	not context.hold
	names := concat(",", sort([name | some name, _ in context]))
}

apply(context) := second([context.hold, context.tenant, 3])

second([_, second, _]) := second
