//! What the return values of PKCS#11 mean, in one table that docs/pkcs11.md shows.
#![forbid(unsafe_code)]

use cryptoki::error::{Error, RvError};
use waxseal::kek::KekErrorClass::{self, Denied, Invalid, Misconfigured, Throttled, Unavailable};

use crate::errors::After::{self, Drop, FindKey, Keep, NoSession, Reconnect};
use crate::errors::Failure;

/// A return value: its class, what becomes of the session, its meaning.
pub(crate) struct Row {
    pub(crate) code: RvError,
    pub(crate) name: &'static str,
    pub(crate) class: KekErrorClass,
    pub(crate) after: After,
    pub(crate) meaning: &'static str,
}

const fn row(
    code: RvError,
    name: &'static str,
    class: KekErrorClass,
    after: After,
    meaning: &'static str,
) -> Row {
    Row { code, name, class, after, meaning }
}

/// Codes of PKCS#11 3.0 and later, which the bindings do not name.
pub(crate) const AEAD_DECRYPT_FAILED: RvError = RvError::UnknownErrorCode(0x42);
const TOKEN_RESOURCE_EXCEEDED: RvError = RvError::UnknownErrorCode(0x201);
const KEY_EXHAUSTED: RvError = RvError::UnknownErrorCode(0x203);
const TOKEN_NOT_INITIALIZED: RvError = RvError::UnknownErrorCode(0x208);

/// What is not in it is *unavailable*, and ends the session.
#[rustfmt::skip]
pub(crate) const TABLE: &[Row] = &[
    // The session, the token, the module
    row(RvError::DeviceRemoved, "CKR_DEVICE_REMOVED", Unavailable, Reconnect, "the token was removed"),
    row(RvError::TokenNotPresent, "CKR_TOKEN_NOT_PRESENT", Unavailable, Reconnect, "the token is not present"),
    row(RvError::TokenNotRecognized, "CKR_TOKEN_NOT_RECOGNIZED", Unavailable, Reconnect, "the token is not recognised"),
    row(RvError::SlotIdInvalid, "CKR_SLOT_ID_INVALID", Unavailable, Reconnect, "the slot is gone"),
    row(RvError::SessionHandleInvalid, "CKR_SESSION_HANDLE_INVALID", Unavailable, Reconnect, "the session is gone"),
    row(RvError::SessionClosed, "CKR_SESSION_CLOSED", Unavailable, Reconnect, "the session was closed"),
    row(RvError::UserNotLoggedIn, "CKR_USER_NOT_LOGGED_IN", Unavailable, Reconnect, "the login is gone"),
    row(RvError::CryptokiNotInitialized, "CKR_CRYPTOKI_NOT_INITIALIZED", Unavailable, Reconnect, "the module was finalised by other code of this process"),
    row(RvError::OperationActive, "CKR_OPERATION_ACTIVE", Unavailable, Reconnect, "the session was left within an operation"),
    row(RvError::DeviceError, "CKR_DEVICE_ERROR", Unavailable, Drop, "the token or its connection failed"),
    row(RvError::GeneralError, "CKR_GENERAL_ERROR", Unavailable, Drop, "the module failed"),
    row(RvError::FunctionFailed, "CKR_FUNCTION_FAILED", Unavailable, Drop, "the function failed"),
    row(RvError::FunctionCanceled, "CKR_FUNCTION_CANCELED", Unavailable, Drop, "the function was cancelled"),
    row(RvError::HostMemory, "CKR_HOST_MEMORY", Unavailable, Drop, "no memory left in this process"),
    row(RvError::DeviceMemory, "CKR_DEVICE_MEMORY", Throttled, Keep, "the token is full"),
    row(TOKEN_RESOURCE_EXCEEDED, "CKR_TOKEN_RESOURCE_EXCEEDED", Throttled, Keep, "the token has no resources left"),
    row(RvError::SessionCount, "CKR_SESSION_COUNT", Throttled, NoSession, "the token has no session left"),
    // The login
    row(RvError::PinIncorrect, "CKR_PIN_INCORRECT", Misconfigured, Keep, "the PIN is wrong"),
    row(RvError::PinInvalid, "CKR_PIN_INVALID", Misconfigured, Keep, "the PIN has characters that no PIN has"),
    row(RvError::PinLenRange, "CKR_PIN_LEN_RANGE", Misconfigured, Keep, "the PIN is too short or too long"),
    row(RvError::PinExpired, "CKR_PIN_EXPIRED", Misconfigured, Keep, "the PIN has expired"),
    row(RvError::PinLocked, "CKR_PIN_LOCKED", Misconfigured, Keep, "the PIN is locked after too many wrong ones; the security officer has to reset it"),
    row(RvError::UserPinNotInitialized, "CKR_USER_PIN_NOT_INITIALIZED", Misconfigured, Keep, "the token has no user PIN yet"),
    row(RvError::UserTypeInvalid, "CKR_USER_TYPE_INVALID", Misconfigured, Keep, "the token knows no such user"),
    row(RvError::UserAnotherAlreadyLoggedIn, "CKR_USER_ANOTHER_ALREADY_LOGGED_IN", Misconfigured, Keep, "this process is logged in as another user, such as the security officer"),
    row(RvError::UserTooManyTypes, "CKR_USER_TOO_MANY_TYPES", Misconfigured, Keep, "this process is logged in as too many users"),
    row(TOKEN_NOT_INITIALIZED, "CKR_TOKEN_NOT_INITIALIZED", Misconfigured, Keep, "the token is not initialised"),
    row(RvError::SessionReadOnly, "CKR_SESSION_READ_ONLY", Misconfigured, Keep, "the token needs a read-write session"),
    // The key
    row(RvError::KeyHandleInvalid, "CKR_KEY_HANDLE_INVALID", Unavailable, FindKey, "the handle of the key is gone"),
    row(RvError::ObjectHandleInvalid, "CKR_OBJECT_HANDLE_INVALID", Unavailable, FindKey, "the handle of the key is gone"),
    row(RvError::KeyFunctionNotPermitted, "CKR_KEY_FUNCTION_NOT_PERMITTED", Denied, Keep, "the key must not be used so (CKA_ENCRYPT, CKA_DECRYPT)"),
    row(RvError::ActionProhibited, "CKR_ACTION_PROHIBITED", Denied, Keep, "the token's policy prohibits it"),
    row(RvError::FunctionRejected, "CKR_FUNCTION_REJECTED", Denied, Keep, "the token's owner rejected it"),
    row(KEY_EXHAUSTED, "CKR_KEY_EXHAUSTED", Denied, Keep, "the key was used as often as it may be"),
    row(RvError::KeyTypeInconsistent, "CKR_KEY_TYPE_INCONSISTENT", Misconfigured, Keep, "the key is not one for AES-GCM"),
    row(RvError::KeySizeRange, "CKR_KEY_SIZE_RANGE", Misconfigured, Keep, "the token does not take keys of this size"),
    // The mechanism
    row(RvError::MechanismInvalid, "CKR_MECHANISM_INVALID", Misconfigured, Keep, "the token has no AES-GCM"),
    row(RvError::MechanismParamInvalid, "CKR_MECHANISM_PARAM_INVALID", Misconfigured, Keep, "the token does not take these parameters"),
    row(RvError::FunctionNotSupported, "CKR_FUNCTION_NOT_SUPPORTED", Misconfigured, Keep, "the module does not have the function"),
    row(RvError::ArgumentsBad, "CKR_ARGUMENTS_BAD", Misconfigured, Keep, "the module does not take these arguments"),
    row(RvError::CantLock, "CKR_CANT_LOCK", Misconfigured, Keep, "the module cannot be used by several threads"),
    row(RvError::NeedToCreateThreads, "CKR_NEED_TO_CREATE_THREADS", Misconfigured, Keep, "the module needs threads of its own"),
    row(RvError::LibraryLoadFailed, "CKR_LIBRARY_LOAD_FAILED", Misconfigured, Keep, "the module cannot load a library that it needs"),
    row(RvError::FipsSelfTestFailed, "CKR_FIPS_SELF_TEST_FAILED", Misconfigured, Drop, "a self-test of the token failed"),
    // The wrapped key
    row(AEAD_DECRYPT_FAILED, "CKR_AEAD_DECRYPT_FAILED", Invalid, Keep, "wrong context, or a damaged or foreign wrapped key"),
    row(RvError::EncryptedDataInvalid, "CKR_ENCRYPTED_DATA_INVALID", Invalid, Keep, "wrong context, or a damaged or foreign wrapped key"),
    row(RvError::EncryptedDataLenRange, "CKR_ENCRYPTED_DATA_LEN_RANGE", Invalid, Keep, "a wrapped key of another length"),
];

/// What a login was refused with because of the PIN itself. Such a PIN is not tried again.
pub(crate) fn blames_the_pin(error: &Error) -> bool {
    use RvError::{PinExpired, PinIncorrect, PinInvalid, PinLenRange, PinLocked};
    let Error::Pkcs11(code, _) = error else { return false };
    matches!(code, PinIncorrect | PinInvalid | PinLenRange | PinExpired | PinLocked)
}

/// Whether a session was not opened because the token, or the module, was not there.
pub(crate) fn never_reached_the_token(error: &Error) -> bool {
    match error {
        Error::Pkcs11(code, _) => find(*code).is_some_and(|row| row.after == Reconnect),
        _ => false,
    }
}

/// What a login failed with that the token says before it looks at a PIN: the session or the token
/// is not there, or does not take this user.
pub(crate) fn leaves_the_pin_alone(error: &Error) -> bool {
    use RvError::{
        CryptokiNotInitialized, OperationActive, SessionClosed, SessionHandleInvalid,
        SlotIdInvalid, TokenNotPresent, TokenNotRecognized, UserAnotherAlreadyLoggedIn,
        UserPinNotInitialized, UserTooManyTypes, UserTypeInvalid,
    };
    let Error::Pkcs11(code, _) = error else { return false };
    matches!(
        code,
        CryptokiNotInitialized
            | OperationActive
            | SessionClosed
            | SessionHandleInvalid
            | SlotIdInvalid
            | TokenNotPresent
            | TokenNotRecognized
            | UserAnotherAlreadyLoggedIn
            | UserPinNotInitialized
            | UserTooManyTypes
            | UserTypeInvalid
    )
}

pub(crate) fn code_of(error: &Error) -> Option<RvError> {
    match error {
        Error::Pkcs11(code, _) => Some(*code),
        _ => None,
    }
}

/// Whether the table has the code.
pub(crate) fn is_listed(error: &Error) -> bool {
    code_of(error).is_some_and(|code| find(code).is_some())
}

fn find(code: RvError) -> Option<&'static Row> {
    TABLE.iter().find(|row| row.code == code)
}

/// The meaning of a call that failed.
pub(crate) fn classify(operation: &str, error: &Error) -> Failure {
    let (code, function) = match error {
        Error::Pkcs11(code, function) => (*code, function),
        Error::NullFunctionPointer => {
            let text = format!("{operation}: the module does not have the function");
            return Failure::misconfigured(text);
        }
        // An answer that cannot be understood.
        other => {
            return Failure::unavailable(format!("{operation}: {other}")).after(Drop);
        }
    };
    let Some(row) = find(code) else {
        let name = match code {
            RvError::VendorDefined(code) => format!("a code of its vendor, {code:#x}"),
            RvError::UnknownErrorCode(code) => format!("a code that is not known, {code:#x}"),
            code => format!("{code:?}"),
        };
        let text = format!("{operation}: C_{function:?} returned {name}");
        return Failure::unavailable(text).after(Drop).lost();
    };
    let text = format!("{operation}: {} (C_{function:?}: {})", row.meaning, row.name);
    let failure = Failure::new(row.class, text).after(row.after);
    let is_ended = code == RvError::CryptokiNotInitialized;
    let failure = Failure { is_ended, ..failure };
    let is_lost = row.class == Unavailable && code != RvError::OperationActive;
    if is_lost { failure.lost() } else { failure }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cryptoki::context::Function;

    /// The columns of the table under this heading of the page.
    fn rows_of_the_page(heading: &str) -> Vec<Vec<String>> {
        let page = include_str!("../../docs/pkcs11.md");
        let (_, section) = page.split_once(heading).unwrap();
        let lines = section.lines().skip_while(|line| !line.starts_with('|'));
        lines
            .take_while(|line| line.starts_with('|'))
            .skip(2)
            .map(|line| {
                let cells = line.trim_matches('|').split('|');
                cells.map(|cell| cell.trim().trim_matches('`').to_owned()).collect()
            })
            .collect()
    }

    #[test]
    fn the_page_has_the_same_table() {
        let after = |after: After| match after {
            Keep => "kept",
            Drop => "replaced",
            Reconnect => "replaced, the call made once more",
            FindKey => "kept, the key looked for, the call made once more",
            NoSession => "not opened",
        };
        let ours: Vec<_> = TABLE
            .iter()
            .map(|row| {
                vec![
                    row.name.to_owned(),
                    row.class.to_string(),
                    after(row.after).to_owned(),
                    row.meaning.to_owned(),
                ]
            })
            .collect();
        let page = rows_of_the_page("## What the return values mean");
        for (ours, page) in ours.iter().zip(&page) {
            assert_eq!(ours, page);
        }
        assert_eq!(ours.len(), page.len());
    }

    #[test]
    fn every_code_is_there_once_and_is_classified_so() {
        for (i, row) in TABLE.iter().enumerate() {
            assert!(TABLE.iter().skip(i + 1).all(|other| other.code != row.code), "{}", row.name);
            let failure = classify("unwrap", &Error::Pkcs11(row.code, Function::Decrypt));
            assert_eq!((failure.class, failure.after), (row.class, row.after), "{}", row.name);
            assert!(failure.message.contains(row.name), "{}", failure.message);
        }
    }

    #[test]
    fn a_code_that_is_not_known_is_unavailable_and_shown() {
        for (code, shown) in [
            (RvError::VendorDefined(0x8000_1234), "0x80001234"),
            (RvError::UnknownErrorCode(0x77), "0x77"),
            (RvError::TemplateIncomplete, "TemplateIncomplete"),
        ] {
            let failure = classify("wrap", &Error::Pkcs11(code, Function::Encrypt));
            assert_eq!((failure.class, failure.after), (Unavailable, Drop));
            assert!(failure.message.contains(shown), "{}", failure.message);
        }
        assert_eq!(classify("wrap", &Error::NullFunctionPointer).class, Misconfigured);
        assert_eq!(classify("wrap", &Error::InvalidValue).class, Unavailable);
    }
}
