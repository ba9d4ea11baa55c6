//! The guides: the pages of `docs/`, with examples that are compiled.
//!
//! | page | what it says |
//! |---|---|
//! | [`lifetimes`] | how long a DEK is cached, and what ends it |
//! | [`branch_keys`] | branch keys, for authors of a service: which contexts, which branches, when a store |
//! | [`key_stores`] | key stores, for operators: backups, erasure, rotation, monitoring |
//! | [`domains`] | data domains: what does not cross, the file, providers by URI |
//! | [`duties`] | who administers and who uses: policies and grants from a domain and its roles |
//! | [`audit`] | the audit trail: its records, its files, and how to verify it |
//! | [`calls`] | how key services are called: timeouts, retries, budget, circuit breakers |
//! | [`streams`] | payloads of any length, and parts of them: what may be relied on, and when |
//! | [`runtimes`] | what runtimes, callers that give up and blocking code change |
//! | [`telemetry`] | metrics, traces and alerts |
//! | [`runbook`] | what each alert means, and what to do |
//! | [`policy`] | who may do what: policies, callers, how long decisions are used |
//! | [`providers`] | how to write a [`KekProvider`](crate::kek::KekProvider) |
//! | [`format`](mod@format) | every byte of the sealed format, normative |
//! | [`performance`] | what a call costs, and how to measure it |
//! | [`security`] | the threat model: what is promised and what is not |
#![forbid(unsafe_code)]

/// The targets of the pages' links in this documentation. Markdown uses the first definition of a
/// link, and each page also defines links between files.
macro_rules! links {
    () => {
        "[branch-keys.md]: crate::guide::branch_keys
[key-stores.md]: crate::guide::key_stores
[`BranchKek`]: crate::branch::BranchKek
[`BranchKek::revoke_kek`]: crate::branch::BranchKek::revoke_kek
[`BranchKek::rewrap_branch_keys`]: crate::branch::BranchKek::rewrap_branch_keys
[`RewrapProgress::next`]: crate::store::RewrapProgress::next
[`Envelope::revoke_kek`]: crate::Envelope::revoke_kek
[`Envelope::prepare`]: crate::Envelope::prepare
[`Envelope::rewrap_all`]: crate::Envelope::rewrap_all
[`Envelope::rewrap_stored`]: crate::Envelope::rewrap_stored
[`Envelope::rewrap_wrapped_keys`]: crate::Envelope::rewrap_wrapped_keys
[`StartOptions::warm_up`]: crate::StartOptions::warm_up
[`EnvelopeBuilder::key_store`]: crate::EnvelopeBuilder::key_store
[`Domain::branches`]: crate::domain::Domain::branches
[`Domain::envelope`]: crate::domain::Domain::envelope
[`DomainsBuilder::envelopes`]: crate::domain::DomainsBuilder::envelopes
[`Domains`]: crate::domain::Domains
[`Schemes`]: crate::domain::Schemes
[`start`]: crate::domain::DomainsBuilder::start
[`Domains::reload`]: crate::domain::Domains::reload
[`DomainsBuilder::drain`]: crate::domain::DomainsBuilder::drain
[audit.md]: crate::guide::audit
[calls.md]: crate::guide::calls
[domains.md]: crate::guide::domains
[outage.svg]: https://docs.rs/crate/waxseal/latest/source/docs/telemetry/outage.svg
[duties.md]: crate::guide::duties
[`Duties`]: crate::domain::duties::Duties
[`DomainsBuilder`]: crate::domain::DomainsBuilder
[format.md]: crate::guide::format
[lifetimes.md]: crate::guide::lifetimes
[performance.md]: crate::guide::performance
[policy.md]: crate::guide::policy
[`Caller`]: crate::Caller
[`ErrorKind::InvalidCaller`]: crate::ErrorKind::InvalidCaller
[`ErrorKind::PolicyDenied`]: crate::ErrorKind::PolicyDenied
[`Error::reasons`]: crate::Error::reasons
[`Policy::generation`]: crate::policy::Policy::generation
[`BranchKekBuilder::policy`]: crate::branch::BranchKekBuilder::policy
[`Envelope::evict_all`]: crate::Envelope::evict_all
[providers.md]: crate::guide::providers
[README]: https://docs.rs/crate/waxseal/latest#providers
[runbook.md]: crate::guide::runbook
[runtimes.md]: crate::guide::runtimes
[streams.md]: crate::guide::streams
[`StreamEncryptor::encrypt`]: crate::StreamEncryptor::encrypt
[`StreamEncryptor::encrypt_slice`]: crate::StreamEncryptor::encrypt_slice
[`StreamDecryptor::decrypt_slice`]: crate::StreamDecryptor::decrypt_slice
[`StreamDecryptor::decrypt_slice_to`]: crate::StreamDecryptor::decrypt_slice_to
[`StreamDecryptor::decrypt`]: crate::StreamDecryptor::decrypt
[`StreamDecryptor::decrypt_chunk`]: crate::StreamDecryptor::decrypt_chunk
[`StreamHead::commitment`]: crate::StreamHead::commitment
[`Envelope::encrypt_stream`]: crate::Envelope::encrypt_stream
[`Envelope::decrypt_stream`]: crate::Envelope::decrypt_stream
[`Envelope::open_stream`]: crate::Envelope::open_stream
[`Envelope::stream_encryptor`]: crate::Envelope::stream_encryptor
[`Envelope::rewrap_head`]: crate::Envelope::rewrap_head
[`Envelope::encrypt_file`]: crate::Envelope::encrypt_file
[`Envelope::decrypt_file`]: crate::Envelope::decrypt_file
[`FileOptions::overwrite`]: crate::FileOptions::overwrite
[`FileOptions::private`]: crate::FileOptions::private
[`FileOptions::extended_attributes`]: crate::FileOptions::extended_attributes
[`StreamOptions`]: crate::StreamOptions
[`StreamOptions::key_space`]: crate::StreamOptions::key_space
[`StreamOptions::compact`]: crate::StreamOptions::compact
[`StreamHead::plaintext_len`]: crate::StreamHead::plaintext_len
[`StreamHead::with_wrapped_keys`]: crate::StreamHead::with_wrapped_keys
[`SeekableStream::len`]: crate::SeekableStream::len
[`ReadAt`]: crate::ReadAt
[`Error::of_io`]: crate::Error::of_io
[telemetry.md]: crate::guide::telemetry
[SECURITY.md]: crate::guide::security
[`KekProvider`]: crate::kek::KekProvider
[aws-kms.md]: https://docs.rs/waxseal-aws-kms/latest/waxseal_aws_kms/guide/aws_kms/
[xks.md]: https://docs.rs/waxseal-aws-kms/latest/waxseal_aws_kms/guide/xks/
[azure.md]: https://docs.rs/waxseal-azure-key-vault/latest/waxseal_azure_key_vault/guide/azure/
[pkcs11.md]: https://docs.rs/waxseal-pkcs11/latest/waxseal_pkcs11/guide/pkcs11/
[google-kms.md]: https://docs.rs/waxseal-google-kms/latest/waxseal_google_kms/guide/google_kms/
[ekm.md]: https://docs.rs/waxseal-google-kms/latest/waxseal_google_kms/guide/ekm/
[vault.md]: https://docs.rs/waxseal-vault-transit/latest/waxseal_vault_transit/guide/vault/

"
    };
}
pub(crate) use links;

macro_rules! pages {
    ($($name:ident: $file:literal,)*) => {
        $(
            #[doc = links!()]
            #[doc = include_str!($file)]
            pub mod $name {}
        )*
    };
}

pages! {
    audit: "../../docs/audit.md",
    branch_keys: "../../docs/branch-keys.md",
    calls: "../../docs/calls.md",
    domains: "../../docs/domains.md",
    duties: "../../docs/duties.md",
    format: "../../docs/format.md",
    key_stores: "../../docs/key-stores.md",
    lifetimes: "../../docs/lifetimes.md",
    performance: "../../docs/performance.md",
    policy: "../../docs/policy.md",
    providers: "../../docs/providers.md",
    runtimes: "../../docs/runtimes.md",
    runbook: "../../docs/runbook.md",
    security: "../../SECURITY.md",
    streams: "../../docs/streams.md",
    telemetry: "../../docs/telemetry.md",
}
