"""The ground floor: tasks, networks, costs, the descent loop, reports and storage. Knows no method, draws nothing."""
