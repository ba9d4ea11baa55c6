package waxseal_test

import data.waxseal

question(service, tenant, own, roles, operation) := {
	"operation": operation,
	"kek_ids": ["local:tenants"],
	"context": {"tenant": tenant, "table": "invoices"},
	"caller": {"service": service, "roles": roles, "groups": [], "attributes": {"tenant": own}},
	"time": "2026-11-27T09:00:00Z",
}

reasons(input_) := result if {
	result := waxseal.deny_reason with input as input_
}

test_a_caller_reads_what_is_its_tenants if {
	waxseal.allow with input as question("billing", "acme", "acme", [], "decrypt")
	waxseal.allow with input as question("billing", "globex", "globex", [], "encrypt")
}

test_another_tenant_is_denied if {
	expected := {"the caller belongs to another tenant"}
	reasons(question("billing", "acme", "globex", [], "decrypt")) == expected
}

test_a_list_of_tenants_is_no_tenant if {
	expected := {"the caller's tenant is not known"}
	reasons(question("billing", "acme", ["acme", "globex"], [], "decrypt")) == expected
}

test_a_tenant_that_the_service_does_not_serve_is_denied if {
	expected := {"the service does not serve this tenant"}
	reasons(question("support", "globex", "globex", [], "decrypt")) == expected
	reasons(question("unknown", "globex", "globex", [], "decrypt")) == expected
}

test_erasing_and_rewrapping_need_their_roles if {
	reasons(question("billing", "acme", "acme", [], "erase")) == {"only an eraser erases"}
	reasons(question("billing", "acme", "acme", ["eraser"], "rewrap")) == {"only a rewrapper rewraps"}
	waxseal.allow with input as question("billing", "acme", "acme", ["eraser"], "erase")
	waxseal.allow with input as question("billing", "acme", "acme", ["rewrapper"], "rewrap")
}

test_nobody_is_denied if {
	not waxseal.allow with input as {"operation": "decrypt", "context": {"tenant": "acme"}}
}
