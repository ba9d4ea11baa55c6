//! Finds the token among the module's slots.
#![forbid(unsafe_code)]

use std::fmt;

use cryptoki::context::Pkcs11;
use cryptoki::slot::{Slot, TokenInfo};

use super::codes::classify;
use crate::errors::Failure;

/// By what a token is found: all that is set has to match.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct TokenName {
    pub(crate) label: Option<String>,
    pub(crate) serial: Option<String>,
    pub(crate) manufacturer: Option<String>,
    pub(crate) model: Option<String>,
    pub(crate) slot_id: Option<u64>,
}

impl TokenName {
    fn matches(&self, slot: Slot, info: &TokenInfo) -> bool {
        let is = |wanted: &Option<String>, found: &str| {
            wanted.as_deref().is_none_or(|wanted| wanted == found)
        };
        is(&self.label, info.label())
            && is(&self.serial, info.serial_number())
            && is(&self.manufacturer, info.manufacturer_id())
            && is(&self.model, info.model())
            && self.slot_id.is_none_or(|wanted| wanted == slot.id())
    }
}

impl fmt::Display for TokenName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        let texts = [
            ("label", &self.label),
            ("serial", &self.serial),
            ("manufacturer", &self.manufacturer),
            ("model", &self.model),
        ];
        for (name, text) in texts {
            if let Some(text) = text {
                write!(f, "{separator}{name} {text:?}")?;
                separator = ", ";
            }
        }
        match self.slot_id {
            Some(slot) => write!(f, "{separator}slot {slot}"),
            None => Ok(()),
        }
    }
}

/// The slot of the token. `was_seen` says that the token was there before, so that it is gone now
/// and not misspelt.
pub(crate) fn find(
    context: &Pkcs11,
    name: &TokenName,
    was_seen: bool,
) -> Result<(Slot, TokenInfo), Failure> {
    let slots =
        context.get_slots_with_token().map_err(|error| classify("find the token", &error))?;
    let (mut found, mut others, mut unread) = (Vec::new(), Vec::new(), None);
    for slot in slots {
        match context.get_token_info(slot) {
            Ok(info) if !info.token_initialized() => {}
            Ok(info) if name.matches(slot, &info) => found.push((slot, info)),
            Ok(info) => others.push(info.label().to_owned()),
            Err(error) => unread = Some(classify("find the token", &error)),
        }
    }
    match (found.pop(), found.is_empty()) {
        (Some(one), true) => return Ok(one),
        (Some((_, one)), false) => {
            let text = format!(
                "several tokens have {name}; name one by its serial number, such as {:?}",
                one.serial_number()
            );
            return Err(Failure::misconfigured(text));
        }
        (None, _) => {}
    }
    if let Some(unread) = unread {
        return Err(unread);
    }
    if was_seen || others.is_empty() {
        return Err(Failure::unavailable(format!("the token with {name} is not there")).lost());
    }
    let text = format!("no token has {name}; there are the tokens {}", others.join(", "));
    Err(Failure::misconfigured(text).lost())
}
