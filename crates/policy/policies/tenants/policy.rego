# Each service works for the tenants that it serves, and a caller only for its own tenant.
# Encryption is open to whoever serves the tenant; erasing needs the role of an eraser.
package waxseal

default allow := false

allow if count(deny_reason) == 0

deny_reason contains "no caller is named" if not input.caller

deny_reason contains "the context names no tenant" if not input.context.tenant

deny_reason contains "the service does not serve this tenant" if not serves_tenant

deny_reason contains "the caller belongs to another tenant" if {
	is_of_tenant
	input.caller.attributes.tenant != input.context.tenant
}

deny_reason contains "the caller's tenant is not known" if not is_of_tenant

deny_reason contains "only an eraser erases" if {
	input.operation == "erase"
	not is_eraser
}

deny_reason contains "only a rewrapper rewraps" if {
	input.operation == "rewrap"
	not is_rewrapper
}

serves_tenant if input.context.tenant in data.tenants.served_by[input.caller.service]

# An attribute that is a list is not a tenant.
is_of_tenant if is_string(input.caller.attributes.tenant)

is_eraser if "eraser" in input.caller.roles

is_rewrapper if "rewrapper" in input.caller.roles
