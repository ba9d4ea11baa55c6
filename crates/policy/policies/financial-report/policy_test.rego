package waxseal_test

import data.waxseal

question := {
	"operation": "decrypt",
	"kek_ids": ["arn:aws:kms:eu-west-1:111122223333:key/financial-reports"],
	"context": {"classification": "financial-report", "quarter": "2026Q3"},
	"caller": {
		"service": "reporting",
		"roles": ["finance-analyst"],
		"groups": [],
		"source_address": "10.1.2.3",
		"attributes": {},
	},
	"time": "2026-11-27T09:00:00Z",
}

changed(parts) := object.union(question, parts)

reasons(input_) := result if {
	result := waxseal.deny_reason with input as input_
}

test_an_analyst_reads_in_business_hours if {
	waxseal.allow with input as question
	waxseal.valid_for_seconds == 28800 with input as question
}

test_nobody_is_denied if {
	not waxseal.allow with input as json.remove(question, ["caller"])
	"no caller is named" in reasons(json.remove(question, ["caller"]))
}

test_another_operation_is_denied if {
	reasons(changed({"operation": "encrypt"})) == {"only decryption is open to callers"}
}

test_another_service_is_denied if {
	reasons(changed({"caller": {"service": "billing"}})) == {"the service may not read financial reports"}
}

test_another_role_is_denied if {
	expected := {"the caller has no role that reads financial reports"}
	reasons(changed({"caller": {"roles": ["engineer"]}})) == expected
	reasons(changed({"caller": {"roles": []}})) == expected
}

test_another_network_is_denied if {
	expected := {"the request comes from outside of the company's network"}
	reasons(changed({"caller": {"source_address": "192.0.2.1"}})) == expected
	reasons(json.remove(question, ["caller/source_address"])) == expected
}

test_an_address_of_version_six_is_allowed if {
	waxseal.allow with input as changed({"caller": {"source_address": "2001:db8:10::7"}})
}

test_outside_of_business_hours_is_denied if {
	expected := {"it is outside of business hours"}

	# 18:00 and 07:59 in Berlin, and a Saturday.
	reasons(changed({"time": "2026-11-27T17:00:00Z"})) == expected
	reasons(changed({"time": "2026-11-27T06:59:59Z"})) == expected
	reasons(changed({"time": "2026-11-28T09:00:00Z"})) == expected
}

test_the_last_second_is_allowed_and_for_no_longer if {
	last := changed({"time": "2026-11-27T16:59:59Z"})
	waxseal.allow with input as last
	waxseal.valid_for_seconds == 1 with input as last
}

test_summer_time_counts if {
	# 08:00 in Berlin.
	waxseal.allow with input as changed({"time": "2026-07-03T06:00:00Z"})
	not waxseal.allow with input as changed({"time": "2026-07-03T16:00:00Z"})
}

test_another_context_is_denied if {
	reasons(changed({"context": {"classification": "public"}})) == {"the context is not that of a financial report"}
}

test_another_key_is_denied_also_beside_the_right_one if {
	expected := {"a key that is not for financial reports could be used"}
	reasons(changed({"kek_ids": ["local:other"]})) == expected
	reasons(changed({"kek_ids": array.concat(question.kek_ids, ["local:other"])})) == expected
	reasons(changed({"kek_ids": []})) == expected
}

test_all_reasons_are_told if {
	count(reasons({"operation": "erase", "time": "2026-11-28T09:00:00Z"})) == 8
}
