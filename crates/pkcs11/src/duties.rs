//! Plans the tokens and keys that separate the duties for the KEKs of a data domain in HSMs.
//!
//! ```
//! use waxseal::domain::DomainConfig;
//! use waxseal::domain::duties::{Duties, Holders};
//! use waxseal_pkcs11::duties::TokenPlan;
//!
//! let config = DomainConfig::default().wrap_with(
//!     "pkcs11:token=prod;object=cards;id=%01?module-path=/usr/lib/softhsm/libsofthsm2.so\
//!      &pin-source=file:/run/secrets/hsm-pin&iv-source=caller",
//! );
//! let holders = Holders::default()
//!     .key_owners(["ada"])
//!     .key_administrators(["bea"])
//!     .writers(["shop"])
//!     .readers(["billing"]);
//!
//! let duties = Duties::new("cards", &config, &holders)?;
//! let plan = TokenPlan::builder(&duties).build()?;
//! let [of_shop, of_billing] = plan.tokens() else { panic!("one for each") };
//! assert_eq!((of_shop.label(), of_shop.holders()), ("prod-w", &["shop".to_owned()][..]));
//! assert!(of_shop.attributes().contains(&("CKA_DECRYPT", false)));
//! assert!(of_billing.uri().contains("token=prod-r;"));
//! assert!(plan.document().contains("cards"));
//! # Ok::<(), waxseal::Error>(())
//! ```
//!
//! PKCS#11 knows two roles, the security officer and the user, and the user of a token can use each
//! of its keys. So those who only wrap and those who only unwrap get separate tokens (or
//! partitions), with the same key under different attributes. What a vendor's HSM offers beyond
//! that (crypto officers, policies of a partition) is not in the plan.
//!
//! An owner of the key is the security officer of its tokens. An administrator generates the key,
//! in a ceremony, and distributes it. Auditors and break-glass have no token: the HSM's own log is
//! what is audited, and an emergency token is a readers' token whose PIN is under seal.
#![forbid(unsafe_code)]

use waxseal::domain::duties::{Duties, Role};
use waxseal::{Error, ErrorKind};

use crate::config::Config;

/// The maximum size of a token's label in bytes (`CK_TOKEN_INFO`).
const LONGEST_LABEL: usize = 32;

/// The tokens of a domain's keys.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TokenPlan {
    duties: Duties,
    tokens: Vec<PlannedToken>,
}

/// Configures a [`TokenPlan`].
#[derive(Clone, Debug)]
#[must_use = "nothing happens until `build`"]
pub struct TokenPlanBuilder {
    duties: Duties,
    rewrappers_see_deks: bool,
}

/// A token, and the one key in it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PlannedToken {
    label: String,
    key_label: String,
    key_id: Option<String>,
    holders: Vec<String>,
    encrypts: bool,
    decrypts: bool,
    uri: String,
}

impl TokenPlan {
    /// Starts with the holders of each role, by your own names of people and services.
    pub fn builder(duties: &Duties) -> TokenPlanBuilder {
        TokenPlanBuilder { duties: duties.clone(), rewrappers_see_deks: false }
    }

    /// Returns the tokens, each with the services that have its user PIN.
    #[must_use]
    pub fn tokens(&self) -> &[PlannedToken] {
        &self.tokens
    }

    /// Returns the steps of the ceremony as text. The same input gives the same text.
    #[must_use]
    pub fn document(&self) -> String {
        let names = |role| match self.duties.holders(role) {
            [] => "nobody".to_owned(),
            names => names.join(", "),
        };
        let mut text = format!(
            "Tokens of the domain {}\n\n\
             Security officers (SO PIN; initialise the tokens, set user PINs, use no key): {}\n\
             Make the keys and give them out, in a ceremony: {}\n",
            self.duties.domain(),
            names(Role::KeyOwner),
            names(Role::KeyAdministrator),
        );
        for token in &self.tokens {
            let id = token.key_id.as_deref().unwrap_or("not set");
            text.push_str(&format!(
                "\nToken {:?}\n  user PIN: {}\n  key {:?}, CKA_ID {id}, AES, 256 bits\n",
                token.label,
                token.holders.join(", "),
                token.key_label,
            ));
            for (attribute, is_set) in token.attributes() {
                let value = if is_set { "CK_TRUE" } else { "CK_FALSE" };
                text.push_str(&format!("    {attribute} {value}\n"));
            }
            text.push_str(&format!("  configuration: {}\n", token.uri));
        }
        text
    }
}

impl PlannedToken {
    /// Returns the label of the token.
    #[must_use]
    pub fn label(&self) -> &str {
        &self.label
    }

    /// Returns the label of the key.
    #[must_use]
    pub fn key_label(&self) -> &str {
        &self.key_label
    }

    /// Returns the services that have the user PIN.
    #[must_use]
    pub fn holders(&self) -> &[String] {
        &self.holders
    }

    /// Returns the attributes of the key that are true or false, by their names in PKCS#11. The key
    /// cannot be read, changed or copied, so its user cannot extend its permissions.
    #[must_use]
    pub fn attributes(&self) -> [(&'static str, bool); 11] {
        [
            ("CKA_TOKEN", true),
            ("CKA_PRIVATE", true),
            ("CKA_ENCRYPT", self.encrypts),
            ("CKA_DECRYPT", self.decrypts),
            ("CKA_WRAP", false),
            ("CKA_UNWRAP", false),
            ("CKA_DERIVE", false),
            ("CKA_SENSITIVE", true),
            ("CKA_EXTRACTABLE", false),
            ("CKA_MODIFIABLE", false),
            ("CKA_COPYABLE", false),
        ]
    }

    /// Returns the URI of the KEK for these services. The KEK id is the same in each token.
    #[must_use]
    pub fn uri(&self) -> &str {
        &self.uri
    }
}

impl TokenPlanBuilder {
    /// Accepts that rewrappers see DEKs. PKCS#11 cannot rewrap, so a rewrapper has a token that
    /// wraps and unwraps. By default `build` refuses a domain that has rewrappers.
    pub fn rewrappers_see_deks(mut self, accepted: bool) -> Self {
        self.rewrappers_see_deks = accepted;
        self
    }

    /// Checks everything that will appear in the plan.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidOption`]
    /// - if the domain has no key in a token, or nobody owns its keys;
    /// - if a KEK's URI identifies its token by anything but a label, or if a label gets too long:
    ///   if a key is in several tokens, the label gets the suffix `-w` (wraps), `-r` (unwraps) or
    ///   `-wr`;
    /// - if somebody only writes, and the URI has no `iv-source`: a key that does not decrypt
    ///   cannot be tested;
    /// - if a key is in several tokens and has versions by id, or if a token would have holders of
    ///   different duties;
    /// - if it has rewrappers that nobody [accepted](Self::rewrappers_see_deks).
    pub fn build(self) -> Result<TokenPlan, Error> {
        let duties = self.duties;
        if duties.holders(Role::KeyOwner).is_empty() {
            return Err(invalid("key_owners: there is none, so nobody could set a PIN"));
        }
        if !duties.holders(Role::Rewrapper).is_empty() && !self.rewrappers_see_deks {
            return Err(invalid(
                "rewrappers: PKCS#11 cannot rewrap, so they would see DEKs; accept that with \
                 rewrappers_see_deks, or have none",
            ));
        }
        let uris = duties.wrapping_keks().map(|uri| (uri, true));
        let uris = uris.chain(duties.unwrapping_keks().map(|uri| (uri, false)));
        let mut tokens: Vec<PlannedToken> = Vec::new();
        for (uri, wraps) in uris {
            let scheme = uri.split(':').next().unwrap_or_default();
            if scheme.eq_ignore_ascii_case("pkcs11") {
                tokens.extend(planned(&duties, &uri.parse()?, wraps)?);
            }
        }
        if tokens.is_empty() {
            return Err(invalid("the domain has no key in a token, or nobody uses it"));
        }
        let mut labels: Vec<_> =
            tokens.iter().map(|token| (&token.label, &token.key_label)).collect();
        labels.sort_unstable();
        if labels.windows(2).any(|pair| matches!(pair, [one, other] if one == other)) {
            return Err(invalid("two KEKs have the same key in the same token"));
        }
        let is_shared = |(n, token): (usize, &PlannedToken)| {
            let later = tokens.iter().skip(n + 1);
            later.filter(|other| other.label == token.label).any(|other| {
                (&other.holders, other.encrypts, other.decrypts)
                    != (&token.holders, token.encrypts, token.decrypts)
            })
        };
        if tokens.iter().enumerate().any(is_shared) {
            return Err(invalid(
                "a token would have holders of different duties: use another label",
            ));
        }
        Ok(TokenPlan { duties, tokens })
    }
}

/// The tokens of one KEK.
fn planned(duties: &Duties, config: &Config, wraps: bool) -> Result<Vec<PlannedToken>, Error> {
    let Some(label) = config.token_label() else {
        return Err(invalid("a KEK's token is not named by its label (token=)"));
    };
    let has = |role, name: &String| duties.holders(role).contains(name);
    let mut names: Vec<_> = [Role::Writer, Role::Reader, Role::Rewrapper]
        .into_iter()
        .flat_map(|role| duties.holders(role))
        .cloned()
        .collect();
    names.sort_unstable();
    names.dedup();
    let uses = |name: &String| {
        let rewraps = has(Role::Rewrapper, name);
        let encrypts = wraps && (rewraps || has(Role::Writer, name));
        (encrypts, rewraps || has(Role::Reader, name))
    };
    let groups: Vec<_> = [(true, false, "-w"), (false, true, "-r"), (true, true, "-wr")]
        .into_iter()
        .map(|(encrypts, decrypts, suffix)| {
            let holders = names.iter().filter(|name| uses(name) == (encrypts, decrypts));
            (encrypts, decrypts, suffix, holders.cloned().collect::<Vec<_>>())
        })
        .filter(|(.., holders)| !holders.is_empty())
        .collect();
    let are_several = groups.len() > 1;
    if are_several && config.has_versions_by_id() {
        return Err(invalid(
            "versions=by-id: who has a token's PIN could add a version to it, and so cross the \
             duties; use one key (single), and a new KEK to rotate",
        ));
    }
    groups
        .into_iter()
        .map(|(encrypts, decrypts, suffix, holders)| {
            if !decrypts && config.has_no_iv_source() {
                return Err(invalid(
                    "a KEK has no iv-source, and who only writes has a key that cannot be tried out",
                ));
            }
            let suffix = if are_several { suffix } else { "" };
            let label = format!("{label}{suffix}");
            if label.len() > LONGEST_LABEL {
                return Err(invalid(format!(
                    "the label {label:?} of a token is longer than {LONGEST_LABEL} bytes"
                )));
            }
            Ok(PlannedToken {
                key_label: config.key_label().to_owned(),
                key_id: config.key_id().map(str::to_owned),
                holders,
                encrypts,
                decrypts,
                uri: config.in_token(&label).to_string(),
                label,
            })
        })
        .collect()
}

fn invalid(detail: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOption, detail.into())
}
