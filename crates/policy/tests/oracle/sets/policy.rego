# Sets: union, intersection, difference, membership, and what is left of them in a denial.
package waxseal

default allow := false

allow if count(deny_reason) == 0

roles := {role | some role in input.caller.roles}

groups := {group | some group in input.caller.groups}

granted := union({operations |
	some role in roles
	operations := {operation | some operation in data.grants[role]}
})

wanted := {pair | some name, value in input.context; pair := sprintf("%s=%s", [name, value])}

deny_reason contains missing if some missing in (required - (roles | groups))

deny_reason contains both if {
	both := roles & groups
	count(both) > 0
}

deny_reason contains {"operation": input.operation, "granted": granted} if {
	not input.operation in granted
}

deny_reason contains ["forbidden", found] if {
	found := intersection({wanted, {"table=cards", "tenant=globex"}})
	count(found) == 2
}

required contains "analyst" if input.operation == "decrypt"

required contains "emea" if input.context.region == "eu"
