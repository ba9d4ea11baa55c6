//! A session in this process or in a helper.
#![forbid(unsafe_code)]

use waxseal::kek::UnwrappedDek;
use zeroize::Zeroizing;

use crate::errors::Failure;
#[cfg(unix)]
use crate::helper::{Process, Remote};
use crate::key::KeyInfo;
use crate::token::{Connection, Token, Wrapping};

/// What a thread keeps of a closed session: its helper.
#[derive(Default)]
pub(crate) struct Spare(#[cfg(unix)] Option<Process>);

/// A session that is logged in and knows the keys.
pub(crate) enum Link {
    Here(Connection),
    #[cfg(unix)]
    InHelper(Remote),
}

/// Does the work here, or asks the helper.
macro_rules! either {
    ($self:ident, $token:ident, $connection:ident => $here:expr, $remote:ident, $helper:ident => $there:expr) => {
        match $self {
            Self::Here($connection) => $here,
            #[cfg(unix)]
            Self::InHelper($remote) => match &$token.helper {
                Some($helper) => $there,
                None => Err(Failure::unavailable("there is no helper")),
            },
        }
    };
}

impl Link {
    pub(crate) fn open(token: &Token, spare: &mut Spare) -> Result<Self, Failure> {
        #[cfg(unix)]
        if let Some(helper) = &token.helper {
            return Remote::open(token, helper, &mut spare.0).map(Self::InHelper);
        }
        let _ = spare;
        Connection::open(token).map(Self::Here)
    }

    pub(crate) fn close(self, token: &Token, spare: &mut Spare) {
        match self {
            Self::Here(connection) => drop(connection),
            #[cfg(unix)]
            Self::InHelper(remote) => {
                if let Some(helper) = &token.helper {
                    spare.0 = remote.close(token, helper);
                }
            }
        }
        let _ = (token, spare);
    }

    /// Whether the end of this session affects the provider's other sessions.
    pub(crate) fn is_shared(&self) -> bool {
        matches!(self, Self::Here(_))
    }

    pub(crate) fn module_was_ended(&self) {
        if let Self::Here(connection) = self {
            connection.module_was_ended();
        }
    }

    pub(crate) fn find_keys(&mut self, token: &Token) -> Result<(), Failure> {
        either!(self, token, here => here.find_keys(token),
            remote, helper => remote.find_keys(token, helper))
    }

    pub(crate) fn check(&mut self, token: &Token) -> Result<KeyInfo, Failure> {
        either!(self, token, here => token.check(here),
            remote, helper => remote.check(token, helper))
    }

    pub(crate) fn wrap(&mut self, token: &Token, wrapping: &Wrapping) -> Result<Vec<u8>, Failure> {
        either!(self, token, here => token.wrap(here, wrapping),
            remote, helper => remote.wrap(token, helper, wrapping))
    }

    pub(crate) fn unwrap(
        &mut self,
        token: &Token,
        aad: &[u8; 32],
        bytes: &[u8],
    ) -> Result<UnwrappedDek, Failure> {
        either!(self, token, here => token.unwrap(here, aad, bytes),
            remote, helper => remote.unwrap(token, helper, aad, bytes))
    }

    pub(crate) fn generate(
        &mut self,
        token: &Token,
        aad: [u8; 32],
    ) -> Result<(Zeroizing<Vec<u8>>, Vec<u8>), Failure> {
        either!(self, token, here => token.generate(here, aad),
            remote, helper => remote.generate(token, helper, &aad))
    }
}
