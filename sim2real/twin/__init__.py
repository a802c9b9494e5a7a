"""The twin: a simulated arm that speaks a robot's ROS interface."""
