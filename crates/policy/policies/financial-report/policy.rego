# Who may read the financial reports: analysts of the reporting service, from the company's
# network, in business hours, and only under the key of the reports.
package waxseal

default allow := false

allow if count(deny_reason) == 0

deny_reason contains "no caller is named" if not input.caller

deny_reason contains "only decryption is open to callers" if input.operation != "decrypt"

deny_reason contains "the service may not read financial reports" if not is_known_service

deny_reason contains "the caller has no role that reads financial reports" if not has_role

deny_reason contains "the request comes from outside of the company's network" if not is_in_network

deny_reason contains "it is outside of business hours" if not is_in_business_hours

deny_reason contains "the context is not that of a financial report" if not is_report

# Every key that may be used has to be one of the reports: one that is not would open a way around.
deny_reason contains "a key that is not for financial reports could be used" if not only_report_keys

is_known_service if input.caller.service in data.financial_report.services

has_role if {
	some role in input.caller.roles
	role in data.financial_report.roles
}

is_in_network if {
	some network in data.financial_report.networks
	net.cidr_contains(network, input.caller.source_address)
}

# The time of the question, not that of the machine, in the zone where the hours are kept.
now := time.parse_rfc3339_ns(input.time)

is_in_business_hours if {
	zone := data.financial_report.hours.zone
	time.weekday([now, zone]) in data.financial_report.hours.days
	[hour, _, _] := time.clock([now, zone])
	hour >= data.financial_report.hours.from
	hour < data.financial_report.hours.to
}

is_report if input.context.classification == "financial-report"

only_report_keys if {
	count(input.kek_ids) > 0
	every id in input.kek_ids {
		id in data.financial_report.keys
	}
}

# A decision ends with the business hours, however long decisions are cached.
valid_for_seconds := seconds if {
	zone := data.financial_report.hours.zone
	[hour, minute, second] := time.clock([now, zone])
	seconds := (((data.financial_report.hours.to - hour) * 3600) - (minute * 60)) - second
	seconds >= 0
}
