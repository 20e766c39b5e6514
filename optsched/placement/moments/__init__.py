"""The part of the placement program that every objective shares: who goes where, and when things happen at the earliest."""
