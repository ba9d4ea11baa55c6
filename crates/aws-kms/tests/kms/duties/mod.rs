//! The generated policies of a domain, tried: what each role needs works, and nothing else does.

mod ground;
mod guards;
mod names;
mod roles;
mod statements;
