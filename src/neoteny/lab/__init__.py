"""The lab: between packs. Configurations, plan, store, resume, executors. Only executors meet JAX."""
