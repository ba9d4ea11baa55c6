//! A process for a PKCS#11 module: see `waxseal_pkcs11::helper`.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    #[cfg(unix)]
    return waxseal_pkcs11::helper::run();
    #[cfg(not(unix))]
    return ExitCode::from(2);
}
