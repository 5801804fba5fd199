"""What readers will read: hints, orders, and the plan that fetches and evicts by them."""
