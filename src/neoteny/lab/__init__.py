"""The lab: between packs. Configurations, plan, store, resume, executors. JAX is met by the executors only."""
