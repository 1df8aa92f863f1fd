//! The whole program, from outside.
mod signatures;
