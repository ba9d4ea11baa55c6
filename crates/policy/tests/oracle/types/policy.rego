# An allow of every type there is, and a deny_reason that is no set.
package waxseal

allow := values[input.caller.service]

values := {
	"billing": true,
	"reporting": "true",
	"support": 1,
	"audit": null,
	"batch": [true],
	"gateway": {"allow": true},
	"maintenance": {true},
	"search": false,
	"": 1.5,
}

deny_reason := input.caller.attributes.team

valid_for_seconds := data.seconds[input.context.table]
