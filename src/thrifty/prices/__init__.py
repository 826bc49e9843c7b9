"""What machines cost by the hour, as data with dates and sources. Nothing is looked up online."""
