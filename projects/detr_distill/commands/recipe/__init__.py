"""From a teacher, a student's name and a folder of data to a configuration."""
