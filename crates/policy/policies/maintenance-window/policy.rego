# Rewrapping and erasing are for the maintenance job, and only in a window that was announced.
# Everything else goes on as usual, but not while a window says that the service is closed.
package waxseal

default allow := false

allow if count(deny_reason) == 0

deny_reason contains "no caller is named" if not input.caller

deny_reason contains "it is no maintenance window" if {
	is_maintenance
	not is_in_window
}

deny_reason contains "only the maintenance job does this" if {
	is_maintenance
	not is_maintainer
}

deny_reason contains "the service is closed for maintenance" if {
	not is_maintenance
	some window in open_window
	window.closed
}

deny_reason contains "the time is not known" if not now

is_maintenance if input.operation in {"rewrap", "erase"}

is_maintainer if {
	input.caller.service == "maintenance"
	"maintainer" in input.caller.roles
}

now := time.parse_rfc3339_ns(input.time)

is_in_window if count(open_window) > 0

open_window contains window if {
	some window in data.maintenance.windows
	now >= time.parse_rfc3339_ns(window.from)
	now < time.parse_rfc3339_ns(window.to)
}
