package waxseal_test

import data.waxseal

question(service, roles, operation, at) := {
	"operation": operation,
	"kek_ids": ["local:cards"],
	"context": {},
	"caller": {"service": service, "roles": roles, "groups": [], "attributes": {}},
	"time": at,
}

reasons(input_) := result if {
	result := waxseal.deny_reason with input as input_
}

job(operation, at) := question("maintenance", ["maintainer"], operation, at)

test_the_job_rewraps_in_a_window if {
	waxseal.allow with input as job("rewrap", "2026-11-28T22:00:00Z")
	waxseal.allow with input as job("erase", "2026-11-29T01:59:59Z")
}

test_outside_of_a_window_nothing_is_rewrapped if {
	reasons(job("rewrap", "2026-11-28T21:59:59Z")) == {"it is no maintenance window"}
	reasons(job("rewrap", "2026-11-29T02:00:00Z")) == {"it is no maintenance window"}
}

test_others_do_not_rewrap if {
	expected := {"only the maintenance job does this"}
	reasons(question("billing", ["maintainer"], "rewrap", "2026-11-28T23:00:00Z")) == expected
	reasons(question("maintenance", [], "erase", "2026-11-28T23:00:00Z")) == expected
}

test_others_go_on_in_an_open_window_and_not_in_a_closed_one if {
	waxseal.allow with input as question("billing", [], "decrypt", "2026-11-28T23:00:00Z")
	expected := {"the service is closed for maintenance"}
	reasons(question("billing", [], "decrypt", "2026-12-05T21:00:00Z")) == expected
	waxseal.allow with input as question("billing", [], "decrypt", "2026-12-06T01:00:00Z")
}

test_nobody_is_denied if {
	reasons({"operation": "decrypt", "time": "2026-11-27T09:00:00Z"}) == {"no caller is named"}
}
