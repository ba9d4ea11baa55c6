# `with`: the same rules about another input, other data, another function.
package waxseal

default allow := false

allow if {
	is_owner
	count(deny_reason) == 0
}

is_owner if data.owner[input.context.table] == input.caller.service

tomorrow := time.add_date(time.parse_rfc3339_ns(input.time), 0, 0, 1)

is_weekend if time.weekday(time.parse_rfc3339_ns(input.time)) in {"Saturday", "Sunday"}

deny_reason contains "an encryption would be denied" if {
	input.operation != "encrypt"
	input.domain == "ledger"
	not is_owner with input.operation as "encrypt" with data.owner as {"cards": "billing", "logs": "search"}
}

deny_reason contains "the other table" if {
	is_owner with input.context.table as "orders"
	not is_owner with input as {"context": {"table": "orders"}, "caller": {"service": "support"}}
}

deny_reason contains "always a weekend" if {
	input.operation == "erase"
	is_weekend with time.weekday as weekend
}

deny_reason contains services if {
	services := {service |
		some service in ["billing", "support", "search"]
		is_owner with input.caller as {"service": service}
	}
	count(services) > 1
}

weekend(_) := "Saturday"

deny_reason contains counted if {
	counted := count(deny) with input.caller.roles as ["a", "b", "c", input.context.zone]
	counted > 3
}

deny contains role if some role in input.caller.roles
