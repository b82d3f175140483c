//! The catalogue of checks: what a Linux guest must do with device memory, and what it was seen to do.

pub mod framework;
pub mod report;
pub mod runner;
pub mod suites;
