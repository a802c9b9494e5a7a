"""Transports: topics in and out, over DDS, rclpy, rospy or within the process."""
