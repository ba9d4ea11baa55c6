# Who may use which external key for what (specification, "Authorization"). Rego v1.
#
# input: operation ("GetKeyMetadata", "Encrypt", "Decrypt"), externalKeyId, requestMetadata as KMS sent it.
# data.grants: objects of principals, keys, operations, kms_operations; each a list of names, where a last "*" stands for anything.
# data.denied_principals: nothing is granted to these.
package xks

default allow := false

allow if {
	granted
	count(deny_reason) == 0
}

granted if {
	some grant in data.grants
	covers(grant.principals, input.requestMetadata.awsPrincipalArn)
	covers(grant.keys, input.externalKeyId)
	covers(grant.operations, input.operation)
	covers(grant.kms_operations, input.requestMetadata.kmsOperation)
}

covers(names, name) if name in names

covers(names, name) if {
	some pattern in names
	endswith(pattern, "*")
	startswith(name, trim_suffix(pattern, "*"))
}

deny_reason contains "the principal is in denied_principals" if {
	input.requestMetadata.awsPrincipalArn in data.denied_principals
}

deny_reason contains "no grant covers this principal, key and operation" if not granted
