"""Everything about plugins: finding, loading and listing them, and the template of a new one."""
