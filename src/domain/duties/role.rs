//! What a person or service may do with the keys of a domain.
#![forbid(unsafe_code)]

use std::fmt;
use std::str::FromStr;

use crate::domain::opening::invalid;
use crate::error::{Error, nearest};

/// What a person or a service does with the keys of a domain.
///
/// | role | may | may not |
/// |---|---|---|
/// | [`KeyAdministrator`](Self::KeyAdministrator) | enable, disable and rotate the KEK | use it, delete it, change who may |
/// | [`KeyOwner`](Self::KeyOwner) | say who may, schedule the deletion of the KEK, erase | use it |
/// | [`Writer`](Self::Writer) | wrap | unwrap |
/// | [`Reader`](Self::Reader) | unwrap | wrap |
/// | [`Rewrapper`](Self::Rewrapper) | have the key service rewrap | wrap, unwrap |
/// | [`Auditor`](Self::Auditor) | read the configuration and the trail | change anything, use the KEK |
/// | [`BreakGlass`](Self::BreakGlass) | unwrap, while somebody else has opened it | anything else |
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[non_exhaustive]
pub enum Role {
    /// Keeps the KEK in order: enables, disables and rotates it.
    KeyAdministrator,
    /// Answers for the domain: says who may do what, and deletes.
    KeyOwner,
    /// A service that encrypts.
    Writer,
    /// A service that decrypts.
    Reader,
    /// The job that rewraps after a rotation, without seeing a DEK.
    Rewrapper,
    /// Someone who looks at the configuration and the trail.
    Auditor,
    /// Someone who decrypts in an emergency. Disabled until somebody else enables it.
    BreakGlass,
}

impl Role {
    /// Every role.
    pub const ALL: [Self; 7] = [
        Self::KeyAdministrator,
        Self::KeyOwner,
        Self::Writer,
        Self::Reader,
        Self::Rewrapper,
        Self::Auditor,
        Self::BreakGlass,
    ];

    /// Returns the name, such as `key-administrator`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::KeyAdministrator => "key-administrator",
            Self::KeyOwner => "key-owner",
            Self::Writer => "writer",
            Self::Reader => "reader",
            Self::Rewrapper => "rewrapper",
            Self::Auditor => "auditor",
            Self::BreakGlass => "break-glass",
        }
    }

    /// Returns the duty that the role belongs to.
    #[must_use]
    pub fn duty(self) -> Duty {
        match self {
            Self::KeyAdministrator | Self::KeyOwner => Duty::Administration,
            Self::Writer | Self::Reader | Self::Rewrapper => Duty::Use,
            Self::Auditor => Duty::Audit,
            Self::BreakGlass => Duty::Emergency,
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Role {
    type Err = Error;

    /// Reads the role's name.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidOption`](crate::ErrorKind::InvalidOption) for an unknown name, with a
    /// hint.
    fn from_str(text: &str) -> Result<Self, Error> {
        let known = || Self::ALL.into_iter().map(Self::as_str);
        Self::ALL.into_iter().find(|role| role.as_str() == text).ok_or_else(|| {
            match nearest(text, known()) {
                Some(near) => invalid(format!("unknown role; did you mean {near:?}?")),
                None => {
                    let known: Vec<_> = known().collect();
                    invalid(format!("unknown role; known are {}", known.join(", ")))
                }
            }
        })
    }
}

/// Duties that are kept separate: nobody has roles of two duties.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[non_exhaustive]
pub enum Duty {
    /// [`Role::KeyAdministrator`] and [`Role::KeyOwner`].
    Administration,
    /// [`Role::Writer`], [`Role::Reader`] and [`Role::Rewrapper`].
    Use,
    /// [`Role::Auditor`].
    Audit,
    /// [`Role::BreakGlass`].
    Emergency,
}

impl Duty {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Administration => "administration",
            Self::Use => "use",
            Self::Audit => "audit",
            Self::Emergency => "emergency",
        }
    }
}
