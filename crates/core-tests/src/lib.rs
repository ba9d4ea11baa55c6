//! The library's tests in a package of their own: those in `tests/` at the top that neither search
//! nor measure memory. There they would be optimised as the library is, and take four times as long
//! to compile.
