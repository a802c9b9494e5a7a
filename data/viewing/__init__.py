"""Looking at demonstrations: the HTML report, pictures of cameras, and recordings for the rerun viewer."""
