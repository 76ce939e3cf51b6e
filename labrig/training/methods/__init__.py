"""How a physical pass becomes a step: one method a module, all behind `Method`."""
