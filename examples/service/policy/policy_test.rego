package waxseal_test

import data.waxseal

question(domain, operation, tenant, roles) := {
	"operation": operation,
	"domain": domain,
	"kek_ids": ["local:customers"],
	"context": {"tenant": "acme", "table": "customers"},
	"caller": {"service": "shop", "roles": roles, "groups": [], "attributes": {"tenant": tenant}},
	"time": "2026-11-29T09:00:00Z",
}

reasons(input_) := result if {
	result := waxseal.deny_reason with input as input_
}

test_a_caller_works_for_its_own_tenant if {
	waxseal.allow with input as question("customers", "encrypt", "acme", [])
	waxseal.allow with input as question("customers", "decrypt", "acme", [])
	waxseal.allow with input as question("payments", "encrypt", "acme", [])
}

test_another_tenant_is_denied if {
	expected := {"the caller belongs to another tenant"}
	reasons(question("customers", "decrypt", "globex", [])) == expected
}

test_cards_are_read_by_billing_only if {
	reasons(question("payments", "decrypt", "acme", ["support"])) == {"only billing reads cards"}
	waxseal.allow with input as question("payments", "decrypt", "acme", ["billing"])
}

test_erasing_needs_an_administrator if {
	expected := {"only an administrator erases and rewraps"}
	reasons(question("customers", "erase", "acme", ["billing"])) == expected
	waxseal.allow with input as question("customers", "erase", "acme", ["administrator"])
}

test_nobody_is_denied if {
	not waxseal.allow with input as {"operation": "decrypt", "domain": "customers", "context": {"tenant": "acme"}}
}
