# Objects: parts that are added, left out, compared and followed.
package waxseal

default allow := false

allow if {
	object.get(input, ["caller", "attributes", "clearance"], "none") in levels
	object.subset(input.context, data.needed)
	count(deny_reason) == 0
}

allow if {
	not input.context.tenant
	object.get(input.caller, "groups", []) == ["emea"]
	count(deny_reason) == 0
}

levels := [level | some level, _ in data.levels]

known := object.union(data.defaults, input.context)

deny_reason contains json.remove(known, ["tenant", "hold"]) if known.region == "us"

deny_reason contains object.filter(input.context, ["tenant", "region"]) if input.operation == "erase"

deny_reason contains object.remove(input.context, {"table"}) if {
	input.operation == "rewrap"
	not input.context == {}
}

deny_reason contains reached if {
	reached := graph.reachable(data.graph, {input.caller.service})
	"root" in reached
}

deny_reason contains json.filter(input, ["caller/roles", "domain"]) if count(object.keys(input.caller.attributes)) > 7

deny_reason contains object.union_n([{"a": {"b": 1}}, {"a": input.context}, {"a": {"tenant": 2}}]) if input.context.hold
