# Addresses, also those that are none: they are an error in both engines.
package waxseal

default allow := false

allow if count(deny_reason) == 0

addresses contains input.caller.source_address

addresses contains input.caller.attributes.address

deny_reason contains "no address" if count(addresses) == 0

deny_reason contains address if {
	some address in addresses
	not is_inside(address)
}

deny_reason contains concat(" is in ", [address, name]) if {
	some address in addresses
	some name, networks in data.networks.closed
	some network in networks
	net.cidr_contains(network, address)
}

is_inside(address) if {
	some network in data.networks.open
	net.cidr_contains(network, address)
}

is_inside(address) if {
	net.cidr_is_valid(concat("", [address, "/24"]))
	input.context.zone == "lab"
}
