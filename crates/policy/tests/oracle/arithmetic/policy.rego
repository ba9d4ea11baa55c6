# Numbers: conversions that fail, divisions by what may be nothing, comparisons across types.
package waxseal

default allow := false

allow if {
	amount < 1000
	count(deny_reason) == 0
}

amount := to_number(input.caller.attributes.amount)

parts := count(input.caller.groups)

deny_reason contains {"share": round(amount / parts)} if amount / parts > 100

deny_reason contains {"rest": abs(amount) % 7} if {
	amount == round(amount)
	abs(amount) % 7 > 4
}

deny_reason contains ceil(amount * 1.5) if input.operation == "rewrap"

deny_reason contains [floor(amount), amount - floor(amount)] if input.operation == "erase"

deny_reason contains "greater than any number" if {
	input.domain == "orders"
	input.caller.attributes.amount > amount
}

deny_reason contains bits.and(floor(amount), 12) if input.domain == "ledger"

deny_reason contains product([amount, 3, parts]) if input.context.region == "us"

valid_for_seconds := amount / 8
