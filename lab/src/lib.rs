//! The laboratory: guests with an agent in them, and what is asked of them.

pub mod guest;
pub mod huge_pages;
pub mod initramfs;
pub mod kernel;
pub mod payload;
pub mod report;
pub mod runner;
pub mod scenarios;
pub mod vm;
