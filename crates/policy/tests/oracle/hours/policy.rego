# Times in several zones, weekdays, dates, and what is between two times.
package waxseal

default allow := false

allow if {
	count(deny_reason) == 0
	is_open
}

now := time.parse_rfc3339_ns(input.time)

zone := object.get(data.hours.zones, object.get(input.context, "region", "eu"), "UTC")

day := time.weekday([now, zone])

clock := time.clock([now, zone])

is_open if {
	day in data.hours.days
	clock[0] >= 8
	clock[0] < 18
}

is_open if day in {"Saturday", "Sunday"}

deny_reason contains sprintf("%s %d:%d:%d", [day, clock[0], clock[1], clock[2]]) if not is_open

deny_reason contains time.date([now, zone]) if {
	[_, month, date] := time.date([now, zone])
	month == 12
	date > 23
}

deny_reason contains {"until": until, "since": since} if {
	until := time.parse_rfc3339_ns(input.caller.attributes.valid_until)
	until < now
	since := time.diff(now, until)
}

deny_reason contains next if {
	input.operation == "erase"
	next := time.add_date(now, 1, 0, 40)
}

deny_reason contains time.parse_duration_ns(input.caller.attributes.lasts) if {
	time.parse_duration_ns(input.caller.attributes.lasts) > time.parse_duration_ns("1h30m")
}

valid_for_seconds := ((18 * 3600) - (clock[0] * 3600)) - (clock[1] * 60) if clock[0] < 18
