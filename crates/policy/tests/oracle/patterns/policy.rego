# Regular expressions and globs on what callers and contexts say.
package waxseal

default allow := false

allow if {
	is_known
	count(deny_reason) == 0
}

is_known if regex.match(`^(billing|report(ing)?|s[a-z]{5,6})$`, input.caller.service)

is_known if glob.match("team-*", [], input.caller.attributes.team)

is_known if glob.match("*.example.org", ["."], input.caller.attributes.mail)

deny_reason contains found if {
	found := regex.find_n(`[0-9]+`, input.caller.attributes.mail, -1)
	count(found) > 0
}

deny_reason contains regex.replace(input.caller.attributes.mail, `^([^@]*)@(.*)$`, "$2 of $1") if {
	not regex.match(`(?i)@EXAMPLE\.(org|com)$`, input.caller.attributes.mail)
}

deny_reason contains parts if {
	parts := regex.split(`[.\-_]`, input.context.tenant)
	count(parts) > 2
}

deny_reason contains name if {
	some name, value in input.context
	regex.match(`\p{Cyrillic}|[^\x00-\x7f]`, value)
}

deny_reason contains ["pattern", input.caller.attributes.pattern] if {
	regex.is_valid(input.caller.attributes.pattern)
	regex.match(input.caller.attributes.pattern, input.operation)
}
