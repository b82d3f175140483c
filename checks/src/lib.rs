//! The catalogue of checks: what a Linux guest must do with device memory, and reports of what it did.

pub mod framework;
pub mod report;
pub mod runner;
pub mod suites;
