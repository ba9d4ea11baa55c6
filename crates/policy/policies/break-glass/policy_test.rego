package waxseal_test

import data.waxseal

question(user, incident, tenant, at, operation) := {
	"operation": operation,
	"kek_ids": ["local:cards"],
	"context": {"tenant": tenant},
	"caller": {
		"service": "console",
		"roles": ["engineer"],
		"groups": [],
		"attributes": {"user": user, "case": incident},
	},
	"time": at,
}

reasons(input_) := result if {
	result := waxseal.deny_reason with input as input_
}

unapproved := "two people have to approve, and neither is the caller"

test_two_approvals_open_the_glass if {
	waxseal.allow with input as question("dan", "INC-7", "acme", "2026-11-27T09:00:00Z", "decrypt")
}

test_a_usual_role_needs_no_approval if {
	usual := {"operation": "decrypt", "caller": {"roles": ["support"]}, "time": "2026-11-27T09:00:00Z"}
	waxseal.allow with input as usual
}

test_an_approval_ends if {
	# The first one is an hour old.
	unapproved in reasons(question("dan", "INC-7", "acme", "2026-11-27T09:30:00Z", "decrypt"))
	waxseal.allow with input as question("dan", "INC-7", "acme", "2026-11-27T09:29:59Z", "decrypt")
}

test_an_approval_is_not_of_tomorrow if {
	unapproved in reasons(question("dan", "INC-7", "acme", "2026-11-27T08:44:59Z", "decrypt"))
}

test_own_approvals_double_ones_and_those_of_strangers_do_not_count if {
	unapproved in reasons(question("ana", "INC-8", "acme", "2026-11-27T09:00:00Z", "decrypt"))
}

test_a_case_is_about_one_caller_and_one_tenant if {
	"the case is about another caller" in reasons(question("fay", "INC-7", "acme", "2026-11-27T09:00:00Z", "decrypt"))
	"the case is about another tenant" in reasons(question("dan", "INC-7", "globex", "2026-11-27T09:00:00Z", "decrypt"))
}

test_the_glass_opens_for_decryption_only if {
	every operation in ["encrypt", "rewrap", "erase"] {
		"break-glass only decrypts" in reasons(question("dan", "INC-7", "acme", "2026-11-27T09:00:00Z", operation))
	}
}

test_a_case_that_is_not_there_opens_nothing if {
	not waxseal.allow with input as question("dan", "INC-9", "acme", "2026-11-27T09:00:00Z", "decrypt")
}

test_nobody_is_denied if {
	"no caller is named" in reasons({"operation": "decrypt", "time": "2026-11-27T09:00:00Z"})
}
