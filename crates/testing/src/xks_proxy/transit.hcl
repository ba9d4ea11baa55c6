# All that the proxy's token may do. The mount is the external key store's own: every key in it can be named by KMS.
path "transit/encrypt/+" { capabilities = ["update"] }
path "transit/decrypt/+" { capabilities = ["update"] }
# A key's description, never the key: GetKeyMetadata has to say its type, Encrypt has to name its version.
path "transit/keys/+" { capabilities = ["read"] }
