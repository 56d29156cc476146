"""What everything stands on: errors, files, snapshots, the console. Nothing here knows of learning."""
