//! The library's tests in a separate package: those in the top-level `tests/` that neither search
//! nor measure memory. In the library's package they would be optimised like the library, and take
//! four times as long to compile.
